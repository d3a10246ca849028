"""Making a bundle: prepare data, search plans, tune experts, fit the router, export."""
