"""Keys, roster, invites: which boards belong to a cluster."""
