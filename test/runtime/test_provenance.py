"""What the diagnostics tell of each chunk, so that a recording can be replayed."""

from types import SimpleNamespace

from diffusion_policy_ros.runtime.provenance import (
    KEPT,
    Provenance,
    ProvenanceLog,
    read_provenance,
)

HOW = SimpleNamespace(
    num_inference_steps=8, sampler="ddim", guidance_scale=1.5, chunk_join="rtc", replan_steps=2
)


def test_what_is_told_is_read_again():
    """Exactly; the newest ones, the oldest first, each with the beginning of its run."""
    newest = ProvenanceLog()
    for stamp_ns in range(100):
        if stamp_ns == 90:
            newest.end_run()
        newest.note(stamp_ns, stamp_ns - 1, stamp_ns % 3, 7, HOW)
    found = read_provenance(str(newest))
    assert [made.stamp_ns for made in found] == list(range(100 - KEPT, 100))
    assert found[-1] == Provenance(99, 98, 90, 0, 7, 8, "ddim", 1.5, "rtc")
    assert found[-11].run_ns == 0


def test_what_is_not_understood_is_left_out():
    """A recording of another version is replayed as far as it goes."""
    assert read_provenance("") == [] == read_provenance("1 2 3; a b c d e f g h")
    assert len(read_provenance("1 0 1 0 7 8 ddim 1.0 rtc; 2 1 1 0 7 8 ddim 1.0 rtc extra")) == 1
