package client_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

// unguarded starts a node without rights, and returns what makes clients of it.
func unguarded(t *testing.T) (connect func(client.Config) *client.Client) {
	t.Helper()
	node := kvdtest.New(t)
	return func(cfg client.Config) *client.Client {
		t.Helper()
		cfg.Endpoints = []string{node.Endpoint}
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
}

// guarded starts a node with rights: root, and ann who may write below a/. The function
// returns clients of it.
func guarded(t *testing.T) (root *client.Client, connect func(client.Config) *client.Client) {
	t.Helper()
	connect, ctx := unguarded(t), t.Context()
	if _, err := connect(client.Config{}).Rights().Enable(ctx, "secret"); err != nil {
		t.Fatal(err)
	}
	root = connect(client.Config{User: "root", Password: "secret"})
	_, err := root.Rights().PutRole(ctx, client.Role{Name: "a", Permissions: []client.Permission{{Access: client.ReadWrite, Names: client.Prefix("a/")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Rights().PutUser(ctx, "ann", client.UserChange{Roles: []string{"a"}, Password: "first"}); err != nil {
		t.Fatal(err)
	}
	return root, connect
}

// mustWrite checks what the client may write.
func mustWrite(t *testing.T, c *client.Client, key string, want error) {
	t.Helper()
	if _, err := c.Put(t.Context(), key, nil); !errors.Is(err, want) {
		t.Errorf("put %s: %v, want %v", key, err, want)
	}
}

// TestCredentials has each kind that a client can be given.
func TestCredentials(t *testing.T) {
	root, connect := guarded(t)
	ctx := t.Context()
	token, err := root.Rights().CreateToken(ctx, client.TokenRequest{User: "ann", Label: "test", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	login, err := connect(client.Config{}).Login(ctx, "ann", "first")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]client.Config{
		"token": {Token: token.Secret}, "login": {Token: login.Token}, "file": {TokenFile: file}, "password": {User: "ann", Password: "first"},
	} {
		who, err := connect(cfg).WhoAmI(ctx)
		if err != nil || who.User != "ann" || who.Root || !reflect.DeepEqual(who.Permissions, []client.Permission{{Access: client.ReadWrite, Names: client.Prefix("a/")}}) {
			t.Errorf("%s: %+v, %v", name, who, err)
		}
	}
	for name, cfg := range map[string]client.Config{
		"none": {}, "wrong token": {Token: "kvd_x"}, "no file": {TokenFile: file + "x"}, "wrong password": {User: "ann", Password: "x"},
	} {
		if _, err := connect(cfg).Get(ctx, "a/1"); !errors.Is(err, client.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, cfg := range []client.Config{{Token: "a", TokenFile: "b"}, {Password: "x"}, {Token: "a b"}, {Token: "a", User: "b"}} {
		cfg.Endpoints = []string{"http://x"}
		if _, err := client.New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
	var denied *client.PermissionDeniedError
	if _, err := connect(client.Config{Token: token.Secret}).Put(ctx, "b", nil); !errors.As(err, &denied) || !errors.Is(err, client.ErrPermissionDenied) || denied.Detail == "" {
		t.Errorf("%v", err)
	}
}

// TestLoginsAreRenewed: a token that ended early is replaced without the caller noticing,
// in single requests and in streams of operations.
func TestLoginsAreRenewed(t *testing.T) {
	root, connect := guarded(t)
	ctx := t.Context()
	ann := connect(client.Config{User: "ann", Password: "first"})
	mustWrite(t, ann, "a/1", nil)
	batch := func() error {
		for r, err := range ann.Batch(ctx, func(yield func(client.Op) bool) { yield(client.OpPut("a/2", nil)) }) {
			if err != nil {
				return err
			}
			if r.Err != nil {
				return r.Err
			}
		}
		return nil
	}
	for range 2 {
		// Setting the same password again ends all logins with it.
		if _, err := root.Rights().PutUser(ctx, "ann", client.UserChange{Password: "first"}); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, ann, "a/1", nil)
		if _, err := root.Rights().PutUser(ctx, "ann", client.UserChange{Password: "first"}); err != nil {
			t.Fatal(err)
		}
		if err := batch(); err != nil {
			t.Error(err)
		}
	}
	if _, err := root.Rights().PutUser(ctx, "ann", client.UserChange{Password: "second"}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, ann, "a/1", client.ErrUnauthenticated)
	if err := batch(); !errors.Is(err, client.ErrUnauthenticated) {
		t.Error(err)
	}
}

// TestWatchEndsWithTheRight: a watch ends once its user may not read the keys anymore.
func TestWatchEndsWithTheRight(t *testing.T) {
	root, connect := guarded(t)
	ctx := t.Context()
	ann := connect(client.Config{User: "ann", Password: "first"})
	mustWrite(t, ann, "a/1", nil)
	var last error
	for event, err := range ann.Watch(ctx, client.Prefix("a/"), client.WatchOptions{From: 1}) {
		if last = err; err != nil {
			break
		}
		if event.KV.Key == "a/1" {
			if _, err := root.Rights().PutUser(ctx, "ann", client.UserChange{Roles: []string{}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var denied *client.PermissionDeniedError
	if !errors.As(last, &denied) || !errors.Is(last, client.ErrPermissionDenied) || denied.Detail == "" {
		t.Errorf("%v", last)
	}
}

// TestTokenFileIsReadAgain: another token in the file is used from then on.
func TestTokenFileIsReadAgain(t *testing.T) {
	root, connect := guarded(t)
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "token")
	var ids []string
	write := func() {
		t.Helper()
		token, err := root.Rights().CreateToken(ctx, client.TokenRequest{User: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, token.ID)
		if err := os.WriteFile(file, []byte(token.Secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	ann := connect(client.Config{TokenFile: file})
	mustWrite(t, ann, "a/1", nil)
	write()
	if err := root.Rights().DeleteToken(ctx, ids[0]); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, ann, "a/1", nil)
	if err := root.Rights().DeleteToken(ctx, ids[1]); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, ann, "a/1", client.ErrUnauthenticated)
}

// TestPasswordWithoutRights: a client with a password works before rights are enabled,
// while they are, and after they were disabled.
func TestPasswordWithoutRights(t *testing.T) {
	node := kvdtest.New(t)
	root, err := client.New(client.Config{Endpoints: []string{node.Endpoint}, User: "root", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	mustWrite(t, root, "x", nil)
	if _, err := root.Rights().Enable(t.Context(), "secret"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, root, "x", nil)
	if _, err := root.Rights().Disable(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, root, "x", nil)
}

// TestEnableFrom: rights are enabled only from the state that was looked at, with and
// without a root who is there already.
func TestEnableFrom(t *testing.T) {
	c, ctx := unguarded(t)(client.Config{User: "root", Password: "secret"}), t.Context()
	for _, root := range []string{"absent", "here"} {
		before, err := c.Rights().State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Rights().PutUser(ctx, "ann", client.UserChange{Roles: []string{}}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Rights().EnableFrom(ctx, before, "secret"); !errors.Is(err, client.ErrPreconditionFailed) {
			t.Errorf("root is %s, after a change: %v", root, err)
		}
		now, err := c.Rights().State(ctx)
		if err == nil {
			now, err = c.Rights().EnableFrom(ctx, now, "secret")
		}
		if err != nil || !now.Enabled {
			t.Errorf("root is %s: %+v, %v", root, now, err)
		}
		if _, err := c.Rights().Disable(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRangesAreEqual: whichever way a range is said.
func TestRangesAreEqual(t *testing.T) {
	same := [][]client.Range{
		{client.Prefix("a/"), client.Between("a/", "a0")}, {client.Key("a"), client.Between("a", "a\x00")},
		{client.Prefix(""), client.Between("", "")}, {client.Prefix("\xff"), client.Between("\xff", "")}, {client.Prefix("a\xff"), client.Between("a\xff", "b")},
	}
	for i, one := range same {
		for j, other := range same {
			if got := one[0].Equal(other[1]); got != (i == j) {
				t.Errorf("%v and %v: %v", one[0], other[1], got)
			}
		}
	}
}

// TestAccounts: users, roles, and tokens as a program manages them.
func TestAccounts(t *testing.T) {
	root, connect := guarded(t)
	ctx := t.Context()
	role := client.Role{Name: "odd/ role", Capabilities: []string{"backup"}, Permissions: []client.Permission{
		{Access: client.Read, Names: client.Key("\xff")}, {Access: client.Write, Names: client.Prefix("p")}, {Access: client.ReadWrite, Locks: true, Names: client.Between("a", "bb")},
		{Access: client.Read, Names: client.Between("x", "")}, {Access: client.Read, Locks: true, Names: client.Prefix("")},
	}}
	made, err := root.Rights().PutRole(ctx, role)
	if err != nil {
		t.Fatal(err)
	}
	read, err := root.Rights().Role(ctx, role.Name)
	if err != nil || !reflect.DeepEqual(read, made) || !reflect.DeepEqual(read.Permissions, role.Permissions) {
		t.Errorf("%+v, want %+v, %v", read, role, err)
	}
	if _, err := root.Rights().PutUser(ctx, "bob", client.UserChange{Roles: []string{}, IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Rights().PutRole(ctx, *read); !errors.Is(err, client.ErrPreconditionFailed) {
		t.Errorf("with an old tag: %v", err)
	}
	if _, err := root.Rights().PutUser(ctx, "bob", client.UserChange{Roles: []string{"a"}, IfAbsent: true}); !errors.Is(err, client.ErrPreconditionFailed) {
		t.Errorf("a user who exists: %v", err)
	}
	var users, roles []string
	for u, err := range root.Rights().Users(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, u.Name)
	}
	for r, err := range root.Rights().Roles(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		roles = append(roles, r.Name)
	}
	if want := []string{"ann", "bob", "root"}; !reflect.DeepEqual(users, want) {
		t.Errorf("users %v", users)
	}
	if want := []string{"a", "odd/ role"}; !reflect.DeepEqual(roles, want) {
		t.Errorf("roles %v", roles)
	}
	ann := connect(client.Config{User: "ann", Password: "first"})
	if _, err := ann.Rights().CreateToken(ctx, client.TokenRequest{Label: "mine"}); err != nil {
		t.Error(err)
	}
	for token, err := range ann.Rights().Tokens(ctx, "") {
		if err != nil || token.User != "ann" || token.Label != "mine" || !token.Expires.IsZero() || time.Since(token.Created) > time.Hour {
			t.Errorf("%+v, %v", token, err)
		}
	}
	verdict, err := root.Check(ctx, client.Question{User: "ann", Permission: &client.Permission{Access: client.Read, Names: client.Key("b")}})
	if err != nil || verdict.Allowed || verdict.Reason == "" {
		t.Errorf("%+v, %v", verdict, err)
	}
	if err := errors.Join(root.Rights().DeleteUser(ctx, "bob"), root.Rights().DeleteRole(ctx, role.Name)); err != nil {
		t.Error(err)
	}
	if _, err := root.Rights().User(ctx, "bob"); !errors.Is(err, client.ErrNotFound) {
		t.Error(err)
	}
	if state, err := connect(client.Config{}).Rights().State(ctx); err != nil || !state.Enabled {
		t.Errorf("%+v, %v", state, err)
	}
}

// A permission is written as nodes write it, with the space of its names.
func TestPermissionAsJSON(t *testing.T) {
	for _, served := range []string{
		`{"access":"read","prefix":"a/","space":"keys"}`, `{"access":"write","key":"a","space":"locks"}`,
		`{"access":"readwrite","end":"c","space":"keys","start":"b"}`,
	} {
		var p client.Permission
		if err := json.Unmarshal([]byte(served), &p); err != nil {
			t.Fatal(err)
		}
		if text, err := json.Marshal(p); err != nil || string(text) != served {
			t.Errorf("%s, %v, want %s", text, err, served)
		}
	}
}
