"""The report is one HTML file: what was measured, as numbers, curves and histograms, and every text, coloured."""
