"""`banyan demo`: a three-level tree on this machine that serves a real model, loses a link, reboots in the dark, and heals."""
