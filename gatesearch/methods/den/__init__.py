"""Deep Elastic Networks: the network (`elastic`), its selector, its widths' cost, the method."""
