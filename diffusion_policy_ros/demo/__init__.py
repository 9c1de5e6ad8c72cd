"""What the demo, the doctor and the tests need beside the nodes."""
