"""Message classes of types that are known by their definition alone, for serialized bytes.

Topics are subscribed to by the name of a type; bytes are delivered and sent as they are. Type
support, a C library that every package of messages brings for its own types, only has to say that
name. So that of another type will do, under the wanted name: ``/tf`` is heard on a machine without
``tf2_msgs``, and a robot's own types without a workspace. This is for Fast DDS, which comes with
the wheels; whoever has another middleware has a ROS installation, too.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from std_msgs.msg import String

FAST_DDS, INTROSPECTION = b"rosidl_typesupport_fastrtps_c", b"rosidl_typesupport_introspection_c"


class _TypeSupport(ctypes.Structure):
    """``rosidl_message_type_support_t``; in ROS 2 Humble without the last three."""

    _fields_ = (
        ("identifier", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("find", ctypes.c_void_p),
        ("hash_of", ctypes.c_void_p),
        ("description_of", ctypes.c_void_p),
        ("sources_of", ctypes.c_void_p),
    )


class _Names(ctypes.Structure):
    """What both kinds of ``data`` begin with, and room for the functions that follow."""

    _fields_ = (
        ("namespace", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("rest", ctypes.c_void_p * 6),
    )


_Find = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


@cache
def stand_in(name: str) -> Any:
    """A class to subscribe to or publish serialized messages of a type with.

    Args:
        name: as ``pkg/msg/Type``.
    """
    lender = type(String)
    lender.__import_type_support__()
    package, _, last = name.split("/")
    lent = _pointer(lender._TYPE_SUPPORT, None)
    find = _Find(_TypeSupport.from_address(lent).find)
    supports: dict[bytes, _TypeSupport] = {}
    kept: list[Any] = [supports]  # C points to all of these as long as the process lives
    for kind, between in ((FAST_DDS, b"::"), (INTROSPECTION, b"__")):
        if not (found := find(lent, kind)):
            continue
        support = _TypeSupport.from_buffer_copy(_TypeSupport.from_address(found))
        names = _Names.from_buffer_copy(_Names.from_address(support.data))
        names.namespace, names.name = package.encode() + between + b"msg", last.encode()
        support.data = ctypes.addressof(names)
        supports[kind] = support
        kept.append(names)
    found_here = _Find(lambda _, kind: _address(supports.get(kind)))
    for support in supports.values():
        support.find = ctypes.cast(found_here, ctypes.c_void_p)
    attributes = {key: getattr(lender, key) for key in vars(lender) if key.isupper()}
    attributes["_TYPE_SUPPORT"] = _capsule(_address(supports[FAST_DDS]), None, None)
    attributes["__import_type_support__"] = classmethod(lambda _: None)
    meta = type(f"Metaclass_{last}", (type,), attributes)
    return meta(last, (), {"kept": [*kept, found_here]})


def _address(support: _TypeSupport | None) -> int | None:
    return None if support is None else ctypes.addressof(support)
