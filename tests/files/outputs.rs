//! Datasets that jobs create beside what a file holds already.
