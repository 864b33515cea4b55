"""The question people ask: its options as text, and the records they stand for."""
