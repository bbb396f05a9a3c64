"""What developers and CI run: checks, generators, the test bed. Nothing here is part of an installation."""
