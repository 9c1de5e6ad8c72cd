"""What a policy would have commanded over a recording, by the code that the node runs."""
