"""The checks on real libraries: what each sees, and what it does not mind."""
