package main

import (
	"fmt"
	"os"
	"time"

	"github.com/kvd-io/kvd/internal/jwt"
	"github.com/kvd-io/kvd/internal/settings"
)

// foreignTokens returns what says who is named by a token that somebody else has signed;
// nil if none are taken. As in etcd, such a token is not taken after an edit of the users
// and roles: it cannot be revoked otherwise.
func (d *daemon) foreignTokens() (func(token string) (user string, ok bool), error) {
	j, err := settings.ParseJWT(d.settings.AuthToken)
	if err != nil || j.KeyFile == "" {
		return nil, err
	}
	key, err := os.ReadFile(j.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("%s: read the key: %w", d.settings.Describe("auth-token"), err)
	}
	v, err := jwt.New(j.Method, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.settings.Describe("auth-token"), err)
	}
	return func(token string) (string, bool) {
		claims, err := v.Verify(token, time.Now())
		return claims.User, err == nil && claims.Revision >= d.gate.Tables().Edits()
	}, nil
}
