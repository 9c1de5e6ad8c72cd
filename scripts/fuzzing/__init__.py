"""What `fuzz.py` feeds: whole things, ways to damage them, and what reads them."""
