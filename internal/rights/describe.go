package rights

import (
	"fmt"
	"strings"
)

// Actions says what the change does, for logs: without keys, labels, hashes, and secrets.
// Names are quoted, since they may contain what separates the actions. What becomes of a
// password precedes all names, since the audit log cuts long texts.
func (c *Change) Actions() (out []string) {
	add := func(done bool, format string, args ...any) {
		if done {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	if u := c.PutUser; u != nil {
		add(true, "put user (%s) %q with roles %q", c.password(), u.Name, u.Roles)
	}
	if p := c.SetPassword; p != nil {
		add(len(p.Hash) > 0, "set the password of user %q", p.User)
		add(len(p.Hash) == 0, "remove the password of user %q", p.User)
	}
	add(c.DeleteUser != "", "delete user %q", c.DeleteUser)
	if r := c.PutRole; r != nil {
		add(true, "put role %q with %d permissions and capabilities %q", r.Name, len(r.Permissions), r.Capabilities)
	}
	add(c.DeleteRole != "", "delete role %q", c.DeleteRole)
	if t := c.PutToken; t != nil {
		add(true, "put token %q of user %q", t.ID, t.User)
	}
	add(c.DeleteToken != "", "delete token %q", c.DeleteToken)
	add(c.Enable, "enable rights")
	add(c.Disable, "disable rights")
	add(len(c.RotateKey) > 0, "replace the key of logins")
	return out
}

// password says what becomes of the password of PutUser.
func (c *Change) password() string {
	switch {
	case c.KeepPassword:
		return "password kept"
	case len(c.PutUser.Hash) > 0:
		return "new password"
	}
	return "no password"
}

// TokensRemoved counts the tokens among the rows of a change that are gone: one was deleted,
// or its user was, or it had expired.
func TokensRemoved(rows []Row) (n int) {
	for _, r := range rows {
		if strings.HasPrefix(r.Key, "t/") && r.Value == nil {
			n++
		}
	}
	return n
}
