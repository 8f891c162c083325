package rights

import "fmt"

// CheckChange returns nil if a user may make a change, and otherwise why not.
//
// Users may change their own password and tokens. Every other change needs the capability
// auth, and its holder can grant or revoke only rights that they have: all rights of the
// entry, before and after the change, must be among the holder's. So a team lead can manage
// the users of a team, and nobody gains a right by changing rights. It follows that only
// root can change root, enable or disable rights, and replace the keys that sign logins.
func (t *Tables) CheckChange(user string, c *Change) error {
	g := t.Grants(user)
	if g.all {
		return nil
	}
	for _, touched := range t.touches(c) {
		if touched.owner == user && user != "" && t.users[user] != nil {
			continue
		}
		if err := t.Check(user, Need{Capability: Auth}); err != nil {
			return err
		}
		if lacking := g.lacks(touched.grants); lacking != "" {
			return fmt.Errorf("user %q may not change %s; only a user who may %s can change it", user, touched.what, lacking)
		}
	}
	return nil
}

// touch is an entry that a change affects, with its rights.
type touch struct {
	what   string
	owner  string // the user who may change it without auth; empty for nobody
	grants *Grants
}

// touches returns the entries that a change affects, as they are and as they will be.
func (t *Tables) touches(c *Change) (out []touch) {
	add := func(what, name, owner string, grants *Grants) {
		out = append(out, touch{fmt.Sprintf("%s %q", what, name), owner, grants})
	}
	byUser := func(what, name, user, owner string) { g, _ := t.compile(user); add(what, name, owner, g) }
	if u := c.PutUser; u != nil {
		byUser("user", u.Name, u.Name, "")
		add("user", u.Name, "", t.union(u.Roles))
	}
	if p := c.SetPassword; p != nil {
		byUser("user", p.User, p.User, p.User)
	}
	if c.DeleteUser != "" {
		byUser("user", c.DeleteUser, c.DeleteUser, "")
	}
	if r := c.PutRole; r != nil {
		add("role", r.Name, "", t.union([]string{r.Name}))
		add("role", r.Name, "", grantsOf([]*Role{r}))
	}
	if c.DeleteRole != "" {
		add("role", c.DeleteRole, "", t.union([]string{c.DeleteRole}))
	}
	if token := c.PutToken; token != nil {
		byUser("token", token.ID, token.User, token.User)
	}
	if c.DeleteToken != "" {
		owner := ""
		if token := t.tokens[c.DeleteToken]; token != nil {
			owner = token.User
		}
		byUser("token", c.DeleteToken, owner, owner)
	}
	if c.Enable || c.Disable || len(c.RotateKey) > 0 || len(out) == 0 {
		out = append(out, touch{"whether rights are enabled", "", everything})
	}
	return out
}

// lacks returns something that is granted by o and not by g, in words, or "".
func (g *Grants) lacks(o *Grants) string {
	if g.all {
		return ""
	}
	if o.all {
		return "do everything"
	}
	for _, c := range o.capabilities {
		if n := (Need{Capability: c}); !g.Allow(n) {
			return n.String()
		}
	}
	for space := range o.ranges {
		for i, access := range []Access{Read, Write} {
			for _, r := range o.ranges[space][i] {
				if n := (Need{Access: access, Space: Space(space), Range: r}); !g.Allow(n) {
					return n.String()
				}
			}
		}
	}
	return ""
}
