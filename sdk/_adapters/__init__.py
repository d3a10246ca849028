"""Capability classes of pipeline families, and their ready-made base classes."""
