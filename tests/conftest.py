"""Property tests judge what is so, not how quickly: several of them share a core, and a slow example proves nothing."""

from hypothesis import settings

settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")
