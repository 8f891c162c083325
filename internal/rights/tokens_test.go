package rights

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// tokens adds tokens of a user to tables with the users ann and bob. Their ids have the
// prefix and the number.
func tokens(t *testing.T, tables *Tables, user, prefix string, n int, created, expires time.Time) *Tables {
	t.Helper()
	for i := range n {
		id := fmt.Sprint(prefix, i)
		token := &Token{ID: id, User: user, Created: created.UnixMilli()}
		copy(token.Sum[:], id)
		if !expires.IsZero() {
			token.Expires = expires.UnixMilli()
		}
		after, _, err := tables.Apply(&Change{PutToken: token})
		if err != nil {
			t.Fatal(err)
		}
		tables = after
	}
	return tables
}

func withUsers(t *testing.T) *Tables {
	t.Helper()
	tables := New()
	for _, name := range []string{"ann", "bob"} {
		after, _, err := tables.Apply(&Change{PutUser: &User{Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		tables = after
	}
	return tables
}

// TestTokensOfAUser: a user has so many tokens at most, and others are not concerned.
func TestTokensOfAUser(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	tables := tokens(t, withUsers(t), "ann", "ann", MaxUserTokens, start, start.Add(time.Minute))
	more := func(user string, at time.Time) error {
		_, _, err := tables.Apply(&Change{PutToken: &Token{ID: "more", User: user, Created: at.UnixMilli()}})
		return err
	}
	if err := more("ann", start.Add(time.Minute+24*time.Hour)); err == nil || !strings.Contains(err.Error(), `user "ann" has 1000 tokens`) || !strings.Contains(err.Error(), "revoke") {
		t.Errorf("one more: %v", err)
	}
	if err := more("bob", start); err != nil {
		t.Errorf("another user: %v", err)
	}
	if err := more("ann", start.Add(time.Minute+sweepAfter+time.Millisecond)); err != nil {
		t.Errorf("after they have expired: %v", err)
	}
}

// TestFastClock: a member whose clock is a day fast deletes no valid token.
func TestFastClock(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	tables := tokens(t, withUsers(t), "ann", "valid", 1, start, start.Add(time.Second))
	after := tokens(t, tables, "bob", "fast", 1, start.Add(24*time.Hour), time.Time{})
	if after.Token("valid0") == nil {
		t.Error("the token of another user, which is valid for a second more, is gone")
	}
}

// TestSweep: tokens that expired long ago go when another one is made, at most so many at
// once, and those of its user first. Rows say so, and what is loaded from them is the same.
func TestSweep(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	tables := tokens(t, withUsers(t), "bob", "old", 70, start, start.Add(time.Second))
	tables = tokens(t, tables, "ann", "a", 50, start, start.Add(2*time.Second))
	tables = tokens(t, tables, "ann", "late", 1, start, start.Add(time.Minute))
	tables = tokens(t, tables, "ann", "stays", 1, start, time.Time{})
	for i, want := range []struct {
		at    time.Duration
		swept int
		left  []string // some of them
	}{
		{2*time.Second + sweepAfter, 70, []string{"late0", "stays0", "a0"}},
		{2*time.Second + sweepAfter + time.Millisecond, 50, []string{"late0", "stays0"}},
		{2*time.Second + sweepAfter + time.Millisecond, 0, []string{"late0", "stays0"}},
		{2 * sweepAfter, 1, []string{"stays0"}},
	} {
		token := &Token{ID: fmt.Sprint("new", i), User: "ann", Created: start.Add(want.at).UnixMilli(), Sum: [32]byte{1, byte(i)}}
		after, rows, err := tables.Apply(&Change{PutToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if got := TokensRemoved(rows); got != want.swept || len(after.Tokens()) != len(tables.Tokens())-got+1 {
			t.Errorf("step %d: %d are gone, want %d; %d are left of %d", i, got, want.swept, len(after.Tokens()), len(tables.Tokens()))
		}
		for _, id := range want.left {
			if after.Token(id) == nil {
				t.Errorf("step %d: %s is gone", i, id)
			}
		}
		if after.Revision() != tables.Revision()+1 {
			t.Errorf("step %d: revision %d after %d", i, after.Revision(), tables.Revision())
		}
		tables = after
	}
	if got, want := tables.Tokens(), []string{"new0", "new1", "new2", "new3", "stays0"}; !slices.Equal(got, want) {
		t.Errorf("%q are left, want %q", got, want)
	}
	// A bound, and whose go first.
	tables = tokens(t, withUsers(t), "bob", "b", 90, start, start.Add(time.Second))
	tables = tokens(t, tables, "ann", "a", 90, start, start.Add(time.Minute))
	after, rows, err := tables.Apply(&Change{PutToken: &Token{ID: "new", User: "ann", Created: start.Add(2 * sweepAfter).UnixMilli()}})
	if err != nil || TokensRemoved(rows) != sweepMost || after.tokensOf("bob") != 90+90-sweepMost || after.tokensOf("ann") != 1 {
		t.Errorf("%v: %d are gone; bob has %d, ann %d", err, TokensRemoved(rows), after.tokensOf("bob"), after.tokensOf("ann"))
	}
}

// TestActions: a log tells every change without its secrets.
func TestActions(t *testing.T) {
	for want, c := range map[string]Change{
		`put user (new password) "ann" with roles ["web"]`:                 {PutUser: &User{Name: "ann", Roles: []string{"web"}, Hash: []byte("HIDDEN")}},
		`put user (password kept) "ann" with roles []`:                     {PutUser: &User{Name: "ann"}, KeepPassword: true},
		`put user (no password) "ann" with roles []`:                       {PutUser: &User{Name: "ann"}},
		`put user (no password) "a\", \"b" with roles ["c d" "e] f"]`:      {PutUser: &User{Name: `a", "b`, Roles: []string{"c d", "e] f"}}},
		`set the password of user "ann"`:                                   {SetPassword: &Password{User: "ann", Hash: []byte("HIDDEN")}},
		`remove the password of user "ann"`:                                {SetPassword: &Password{User: "ann"}},
		`delete user "ann"`:                                                {DeleteUser: "ann"},
		`delete user "ann; enable rights"`:                                 {DeleteUser: "ann; enable rights"},
		`put role "web" with 1 permissions and capabilities ["auth"]`:      {PutRole: &Role{Name: "web", Permissions: []Permission{{Key: []byte("HIDDEN")}}, Capabilities: []Capability{Auth}}},
		`delete role "web"`:                                                {DeleteRole: "web"},
		`put token "t" of user "ann"`:                                      {PutToken: &Token{ID: "t", User: "ann", Label: "HIDDEN"}},
		`delete token "t"`:                                                 {DeleteToken: "t"},
		`enable rights`:                                                    {Enable: true},
		`disable rights`:                                                   {Disable: true},
		`replace the key of logins`:                                        {RotateKey: []byte("HIDDEN")},
		`put user (no password) "root" with roles ["root"]; enable rights`: {PutUser: &User{Name: Root, Roles: []string{Root}}, Enable: true},
	} {
		if got := strings.Join(c.Actions(), "; "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
