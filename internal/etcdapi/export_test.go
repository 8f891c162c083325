package etcdapi

import (
	"maps"
	"slices"
)

// Methods returns the full names of all methods that clients can call.
func (s *Server) Methods() []string { return slices.Sorted(maps.Keys(s.calls)) }

// Declared reports whether a method says what it takes.
func Declared(method string) bool { return required[method] != nil }

// DeclaredMethods returns the methods that say what they take.
func DeclaredMethods() []string { return slices.Sorted(maps.Keys(required)) }
