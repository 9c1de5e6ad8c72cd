"""The robot's contract: which topics become which arrays, and what an action is.

One YAML file a robot, copied into bag metadata, dataset and checkpoint. The recorder, the
converter, the trainer and the node all read the robot from here and from nowhere else, which is
why they agree.
"""

from diffusion_policy_ros.contract.action import (
    ACTION_KINDS,
    ROLES,
    ROTATION_KINDS,
    Action,
    ActionField,
    slices,
)
from diffusion_policy_ros.contract.limits import JOINT_LIMITS, LIMITS_OF, FieldLimits, Limits
from diffusion_policy_ros.contract.meaning import same_meaning
from diffusion_policy_ros.contract.messages import MESSAGE_TYPES, MessageType
from diffusion_policy_ros.contract.outputs import OUTPUTS, Output, OutputType, Send
from diffusion_policy_ros.contract.robot import Contract
from diffusion_policy_ros.contract.stream import Stream

__all__ = [
    "ACTION_KINDS",
    "JOINT_LIMITS",
    "LIMITS_OF",
    "MESSAGE_TYPES",
    "OUTPUTS",
    "ROLES",
    "ROTATION_KINDS",
    "Action",
    "ActionField",
    "Contract",
    "FieldLimits",
    "Limits",
    "MessageType",
    "Output",
    "OutputType",
    "Send",
    "Stream",
    "same_meaning",
    "slices",
]
