package main

import (
	"slices"
	"testing"

	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/settings"
)

// TestEveryDialectOfTheSettingsIsServed: package settings has a list of its own, since it
// imports nothing that serves.
func TestEveryDialectOfTheSettingsIsServed(t *testing.T) {
	if !slices.Equal(settings.Dialects, httpapi.Dialects) {
		t.Errorf("the settings accept %v, httpapi serves %v", settings.Dialects, httpapi.Dialects)
	}
}
