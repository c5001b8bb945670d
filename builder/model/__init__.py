"""The frozen values that go from stage to stage; all serialise to JSON."""
