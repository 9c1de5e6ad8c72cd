"""Messages become observation windows, the same way for a bag and for a live robot."""
