"""EAGLE-3 heads as published: their files, their layer, and how they draft."""
