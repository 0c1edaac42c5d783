"""Ways of lifting the curse of multilinguality side by side: one base, the same tokens in the same order."""
