//! containers and images: orchestration and persistence
