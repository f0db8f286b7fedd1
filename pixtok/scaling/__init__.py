"""How the loss falls with scale: plan runs for a budget, launch them, fit laws, report."""
