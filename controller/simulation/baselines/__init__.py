"""The controllers that SAIR is measured against, each with the control law that its own source has."""
