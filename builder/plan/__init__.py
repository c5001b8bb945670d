"""What must be done and why: fingerprints, reasons, actions. Pure."""
