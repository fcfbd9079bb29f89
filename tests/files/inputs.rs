//! Files that jobs read: links, virtual datasets, filters, damage.
