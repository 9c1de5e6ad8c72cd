#!/bin/sh
# Make sure that the simulator can draw without a screen: EGL or OSMesa, from the system's packages.
# Usage: scripts/opengl.sh PYTHON   (an interpreter that has mujoco)
# Never fails: what needs no pictures works without, and `diffusion-policy doctor` tells the rest.
set -u
PYTHON=$1
PACKAGES="libegl1 libgl1 libopengl0 libgl1-mesa-dri"

draws() {
    for backend in egl osmesa; do
        MUJOCO_GL=$backend PYOPENGL_PLATFORM=$backend "$PYTHON" - >/dev/null 2>&1 <<'EOF' && return 0
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
renderer.render()
EOF
    done
    return 1
}

draws && { echo "OpenGL: the simulator can draw."; exit 0; }

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "OpenGL: the simulator's cameras need the system packages $PACKAGES; installing them with apt-get."
    export DEBIAN_FRONTEND=noninteractive
    # A stale or unreachable list is no reason to stop: the packages may be known already.
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
    draws && { echo "OpenGL: the simulator can draw."; exit 0; }
fi

cat >&2 <<EOF
WARNING: OpenGL does not work here, so the simulator's cameras cannot draw.
  Install the system packages, for example:  sudo apt-get install $PACKAGES
  then see:  diffusion-policy doctor
EOF
