package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/settings"
)

// firstRights returns the rights with which a cluster that this node founds begins; nil
// without --root-password-file. The file is read only then: it may be removed once the
// cluster exists.
func firstRights(s *settings.Settings, hash func(ctx context.Context, password string) ([]byte, error)) func() (rights.Change, error) {
	if s.RootPasswordFile == "" {
		return nil
	}
	return func() (rights.Change, error) {
		text, err := os.ReadFile(s.RootPasswordFile)
		if err != nil {
			return rights.Change{}, fmt.Errorf("%s: %w", s.Describe("root-password-file"), err)
		}
		password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
		if password == "" {
			return rights.Change{}, fmt.Errorf("%s: %s is empty", s.Describe("root-password-file"), s.RootPasswordFile)
		}
		hashed, err := hash(context.Background(), password)
		if err != nil {
			return rights.Change{}, fmt.Errorf("%s: %w", s.Describe("root-password-file"), err)
		}
		return rights.Change{PutUser: &rights.User{Name: rights.Root, Hash: hashed, Roles: []string{rights.Root}}, Enable: true}, nil
	}
}
