"""Adopting a guest: its files moved into the store, its definitions pointed at them; and the way back."""
