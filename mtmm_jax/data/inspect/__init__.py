"""Commands that look at data: `check`, `show`, `annotations`."""
