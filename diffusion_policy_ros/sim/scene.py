"""The scene: a table, a block, a two-finger gripper that follows a pose, three cameras.

The gripper is a free body welded softly to a mocap body, so it is controlled by Cartesian poses as
the controller of a real arm would be. Its body frame is the tool frame: origin between the finger
tips, parallel to the base at rest. The arm behind it is drawn only: two links that the kinematics
of `arm_links` lay between a shoulder and the wrist; it has no mass and touches nothing.

The numbers of the physics were found by experiment: with them a lifted block slips a fifth of a
millimetre in five seconds. Shadows and multisampling are off because they multiply the price of an
84x84 frame by a hundred in software; `cameras.py` turns them on for large pictures only.
"""

from __future__ import annotations

import math

import numpy as np

from diffusion_policy_ros.sim.opengl import mujoco

TIMESTEP = 0.005
BLOCK_HALF = 0.02
FINGER_OPEN = 0.04
SHOULDER = np.array([-0.50, 0.0, 0.30])
UPPER_LENGTH, FORE_LENGTH = 0.40, 0.42
WRIST_HEIGHT = 0.165

XML = f"""
<mujoco model="mini_lift">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="0" offsamples="0" numslices="10" numstacks="5" numquads="1"/>
    <headlight ambient="0.36 0.36 0.38" diffuse="0.30 0.30 0.30" specular="0.05 0.05 0.05"/>
    <map znear="0.02" zfar="30" shadowclip="1" shadowscale="0.8"/>
    <rgba haze="0.80 0.85 0.90 1"/>
  </visual>
  <statistic center="0 0 0.1" extent="1"/>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.90 0.94 0.97"
             rgb2="0.62 0.71 0.80"
             width="64" height="64"/>
    <texture name="grid" type="2d" builtin="flat" mark="edge" rgb1="0.93 0.91 0.87"
             markrgb="0.78 0.77 0.74" width="128" height="128"/>
    <material name="mat" texture="grid" texrepeat="8 8" specular="0.05" shininess="0.1"/>
    <material name="table" rgba="0.58 0.43 0.30 1" specular="0.1" shininess="0.2"/>
    <material name="block" rgba="0.88 0.22 0.16 1" specular="0.3" shininess="0.4"/>
    <material name="shell" rgba="0.95 0.96 0.97 1" specular="0.4" shininess="0.5"/>
    <material name="joint" rgba="0.16 0.42 0.70 1" specular="0.4" shininess="0.5"/>
    <material name="dark" rgba="0.17 0.19 0.22 1" specular="0.3" shininess="0.4"/>
    <material name="pad" rgba="0.98 0.70 0.16 1" specular="0.1" shininess="0.1"/>
  </asset>
  <default>
    <default class="drawn"><geom contype="0" conaffinity="0" group="1" mass="0"/></default>
    <default class="solid">
      <geom condim="4" friction="1 0.01 0.0001" solref="0.01 1" solimp="0.95 0.99 0.001"/>
    </default>
    <default class="finger">
      <joint type="slide" range="0 {FINGER_OPEN}" damping="20" armature="0.1"/>
      <position kp="500" kv="20" ctrlrange="0 {FINGER_OPEN}" forcerange="-20 20"/>
    </default>
  </default>
  <worldbody>
    <light name="sun" pos="0.5 -0.6 1.6" dir="-0.22 0.26 -1" directional="true" castshadow="true"
           diffuse="0.52 0.51 0.48" specular="0.25 0.25 0.25" ambient="0.05 0.05 0.05"/>
    <camera name="agentview" pos="0.60 0 0.44" xyaxes="0 1 0 -0.4695 0 0.8829" fovy="37"/>
    <camera name="overview" pos="0.82 -0.68 0.62"
            xyaxes="0.6071 0.7946 0 -0.3346 0.2557 0.9070" fovy="36"/>
    <geom class="solid" name="table" type="box" pos="-0.12 0 -0.02"
          size="0.52 0.42 0.02" material="table"/>
    <geom class="drawn" name="mat" type="box" pos="0 0 -0.0047" size="0.24 0.24 0.005"
          material="mat"/>
    <geom class="drawn" type="cylinder" pos="-0.50 0 0.01" size="0.085 0.01" material="dark"/>
    <geom class="drawn" type="cylinder" pos="-0.50 0 0.13" size="0.062 0.12" material="shell"/>
    <geom class="drawn" type="cylinder" pos="-0.50 0 0.245" size="0.064 0.012" material="joint"/>

    <body name="turret" mocap="true" pos="-0.50 0 0.30">
      <geom class="drawn" type="cylinder" size="0.058 0.07" zaxis="0 1 0" material="joint"/>
    </body>
    <body name="upper_arm" mocap="true">
      <geom class="drawn" type="capsule" fromto="0 0 0 {UPPER_LENGTH} 0 0" size="0.045"
            material="shell"/>
      <geom class="drawn" type="cylinder" pos="{UPPER_LENGTH} 0 0" size="0.048 0.058" zaxis="0 1 0"
            material="joint"/>
    </body>
    <body name="forearm" mocap="true">
      <geom class="drawn" type="capsule" fromto="0 0 0 {FORE_LENGTH} 0 0" size="0.036"
            material="shell"/>
    </body>

    <body name="target" mocap="true"/>
    <body name="hand" gravcomp="1">
      <freejoint name="hand"/>
      <site name="tool" size="0.004" rgba="0 0 0 0"/>
      <geom class="drawn" type="sphere" pos="0 0 {WRIST_HEIGHT}" size="0.041" material="joint"/>
      <geom class="drawn" type="cylinder" pos="0 0 0.125" size="0.030 0.022" material="shell"/>
      <geom class="drawn" type="cylinder" pos="0 0 0.106" size="0.034 0.005" material="joint"/>
      <geom class="solid" name="palm" type="box" pos="0 0 0.084" size="0.024 0.060 0.019"
            mass="0.5"
            material="dark"/>
      <geom class="drawn" type="box" pos="0 0 0.084" size="0.0245 0.034 0.0193" material="shell"/>
      <geom class="drawn" type="box" pos="0.040 0 0.094" size="0.016 0.016 0.010" material="dark"/>
      <geom class="drawn" type="cylinder" pos="0.050 0 0.083" size="0.009 0.004" material="joint"/>
      <camera name="robot0_eye_in_hand" pos="0.052 0 0.088"
              xyaxes="0 -1 0 0.94 0 -0.342" fovy="76"/>
      <body name="left_finger" gravcomp="1">
        <joint class="finger" name="left" axis="0 1 0"/>
        <geom class="drawn" type="box" pos="0 0.009 0.044" size="0.010 0.006 0.022"
              material="dark"/>
        <geom class="solid" name="left_pad" type="box" pos="0 0.0055 0.006"
              size="0.011 0.0055 0.018"
              mass="0.05" friction="2 0.05 0.0001" material="pad"/>
      </body>
      <body name="right_finger" gravcomp="1">
        <joint class="finger" name="right" axis="0 -1 0"/>
        <geom class="drawn" type="box" pos="0 -0.009 0.044" size="0.010 0.006 0.022"
              material="dark"/>
        <geom class="solid" name="right_pad" type="box" pos="0 -0.0055 0.006"
              size="0.011 0.0055 0.018"
              mass="0.05" friction="2 0.05 0.0001" material="pad"/>
      </body>
    </body>

    <body name="block" pos="0 0 {BLOCK_HALF}">
      <freejoint name="block"/>
      <geom class="solid" name="block" type="box"
            size="{BLOCK_HALF} {BLOCK_HALF} {BLOCK_HALF}" mass="0.05"
            friction="1.5 0.02 0.0001" material="block"/>
    </body>
  </worldbody>
  <contact>
    <exclude body1="hand" body2="left_finger"/>
    <exclude body1="hand" body2="right_finger"/>
    <exclude body1="left_finger" body2="right_finger"/>
  </contact>
  <equality>
    <weld body1="target" body2="hand" solref="0.02 1" relpose="0 0 0 1 0 0 0"/>
    <joint joint1="left" joint2="right" polycoef="0 1 0 0 0" solref="0.01 1"/>
  </equality>
  <actuator>
    <position class="finger" name="left" joint="left"/>
    <position class="finger" name="right" joint="right"/>
  </actuator>
</mujoco>
"""


def build_model(more: str = "") -> mujoco.MjModel:
    """The compiled scene.

    Args:
        more: what else stands in the world, as XML.
    """
    return mujoco.MjModel.from_xml_string(XML.replace("</worldbody>", f"{more}</worldbody>"))


def arm_links(wrist: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lay the drawn arm between shoulder and wrist, elbow up, in the upright plane through both.

    Args:
        wrist: (3,) position in the base frame.

    Returns:
        Body name to position (3,) and quaternion (4,), w x y z as MuJoCo has it; a link's x axis
        runs along it.
    """
    forward = math.hypot(wrist[0] - SHOULDER[0], wrist[1] - SHOULDER[1])
    upward = wrist[2] - SHOULDER[2]
    yaw = math.atan2(wrist[1] - SHOULDER[1], wrist[0] - SHOULDER[0])
    reach = min(max(math.hypot(forward, upward), 0.05), 0.999 * (UPPER_LENGTH + FORE_LENGTH))
    cosine = (UPPER_LENGTH**2 + reach**2 - FORE_LENGTH**2) / (2 * UPPER_LENGTH * reach)
    rise = math.atan2(upward, forward) + math.acos(min(max(cosine, -1.0), 1.0))
    out, up = UPPER_LENGTH * math.cos(rise), UPPER_LENGTH * math.sin(rise)
    elbow = SHOULDER + np.array([out * math.cos(yaw), out * math.sin(yaw), up])
    return {
        "turret": (SHOULDER, _turn(yaw, 0.0)),
        "upper_arm": (SHOULDER, _turn(yaw, rise)),
        "forearm": (elbow, _turn(yaw, math.atan2(upward - up, forward - out))),
    }


def _turn(yaw: float, rise: float) -> np.ndarray:
    """Quaternion w x y z: about z by yaw, then the x axis raised by rise (a turn about -y)."""
    c, s, k, r = (f(a / 2) for a in (yaw, -rise) for f in (math.cos, math.sin))
    return np.array([c * k, -s * r, c * r, s * k])
