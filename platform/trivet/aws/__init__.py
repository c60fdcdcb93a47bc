"""The AWS door: the control plane that aws clients speak to, driven by AWS's own models."""
