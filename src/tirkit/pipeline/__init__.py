"""Stages in order, each resumable: what a config says, done."""
