"""The verdict on a life: against undisturbed texts, memory over time, leftovers."""
