"""Connections to event sources: dial, sign, read, judge, try again."""
