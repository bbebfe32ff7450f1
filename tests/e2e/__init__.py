"""Tests against a real Kubernetes, and the harness that brings one up on this machine."""
