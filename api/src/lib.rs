//! Docker Engine API: the JSON shapes that cross the REST boundary
