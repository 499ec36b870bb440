"""Records of single steps: what was drafted, verified and accepted, and how long each phase took."""
