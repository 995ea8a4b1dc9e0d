"""Faster ways to compute what torch computes, chosen by device; torch's own way is the reference."""
