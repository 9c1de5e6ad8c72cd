"""Files as torch.save and the original's workspace write them, and hostile ones."""

import collections
import io
import pickle
import sys
import types
import zipfile

import torch


def archive(path, pickled, entries=(), compression=zipfile.ZIP_STORED):
    """A file of torch.save with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in dict(entries).items():
            file.writestr(f"archive/{name}", data)
    return path


class Reduced:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.told = (function, arguments)

    def __reduce__(self):
        return self.told


class Storage:
    """Pickles as the persistent id of a storage."""

    def __init__(self, key="0", numbers=4, kind=torch.FloatStorage):
        self.told = ("storage", kind, key, "cpu", numbers)


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        return thing.told if isinstance(thing, Storage) else None


def pickled(content, protocol=2):
    """The bytes of it."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(content)
    return out.getvalue()


def tensor(storage, offset=0, size=(4,), stride=(1,)):
    """A tensor as torch.save tells it."""
    arguments = (storage, offset, size, stride, False, collections.OrderedDict())
    return Reduced(torch._utils._rebuild_tensor_v2, *arguments)


def configured(monkeypatch, value):
    """A configuration as OmegaConf's objects, whose classes need not be installed."""
    names = {"DictConfig": "dictconfig", "ListConfig": "listconfig", "AnyNode": "nodes"}
    made = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for name, module in names.items():
        holder = types.ModuleType(f"omegaconf.{module}")
        made[name] = type(name, (), {"__module__": holder.__name__})
        setattr(holder, name, made[name])
        monkeypatch.setitem(sys.modules, holder.__name__, holder)

    def node(value):
        kind = {dict: "DictConfig", list: "ListConfig"}.get(type(value), "AnyNode")
        out = made[kind]()
        if isinstance(value, dict):
            out._content = {key: node(child) for key, child in value.items()}
        elif isinstance(value, list):
            out._content = [node(child) for child in value]
        else:
            out._val = value
        out._parent = out
        return out

    return node(value)


def checkpoint(path, config, **state_dicts):
    """What the original's workspace saves."""
    content = {"cfg": config, "state_dicts": state_dicts, "pickles": {"epoch": b"\x80\x04K\x01."}}
    torch.save(content, path)
    return path
