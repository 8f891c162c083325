package accounts

import (
	"net/http"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/rights"
)

// appendState appends whether rights are enabled, without the closing brace.
func appendState(doc []byte, enabled bool, revision uint64) []byte {
	doc = strconv.AppendBool(append(doc, `{"enabled":`...), enabled)
	return reply.AppendNumber(doc, "revision", revision)
}

// getAuth needs no credentials: a client has to know whether to prompt for a password.
func getAuth(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	return found(t, append(appendState(nil, t.Enabled(), t.Revision()), '}')), nil
}

// putAuth enables or disables rights. A password for root adds that user in the same step,
// so that rights are never enabled without a user who can log in.
func putAuth(r *Request) (*Answer, error) {
	var doc struct {
		Enabled      *bool   `json:"enabled"`
		RootPassword *string `json:"root_password"`
		Revision     uint64  `json:"revision"` // what GET answers can be sent back
	}
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	if doc.Enabled == nil {
		return nil, badRequest("the field \"enabled\" is missing; it is true or false")
	}
	c := &rights.Change{Enable: *doc.Enabled, Disable: !*doc.Enabled}
	if doc.RootPassword != nil {
		if err := r.withRoot(c, *doc.RootPassword); err != nil {
			return nil, err
		}
	}
	res, err := r.change(c)
	if err != nil {
		return nil, err
	}
	text := append(appendState(nil, *doc.Enabled, res.KV.ModRevision), '}', '\n')
	return &Answer{Status: http.StatusOK, Document: text, Revision: res.KV.ModRevision}, nil
}

// withRoot adds the user root to a change that enables rights.
func (r *Request) withRoot(c *rights.Change, password string) error {
	switch {
	case c.Disable:
		return atField("root_password", "it only makes sense with \"enabled\": true")
	case password == "":
		return atField("root_password", "it is empty")
	}
	t, err := r.read()
	if err != nil {
		return err
	}
	c.PutUser = &rights.User{Name: rights.Root, Roles: []string{rights.Root}}
	if err := r.judge(c); err != nil { // before the password is hashed
		return err
	}
	if root := t.User(rights.Root); root != nil {
		c.PutUser.Roles = append(c.PutUser.Roles, root.Roles...)
		c.Revision = t.Revision()
	}
	if len(t.Keys()) == 0 {
		c.RotateKey = access.NewKey(time.Now())
	}
	c.PutUser.Hash, err = r.Gate.Hash(r.Context, password)
	return err
}

// whoAmI returns the caller and all its rights.
func whoAmI(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	g := t.Grants(r.Caller.User)
	permissions := g.Permissions()
	var roles []string
	if u := t.User(r.Caller.User); u != nil {
		roles = u.Roles
	}
	if err := r.Memory.Wait(r.Context, r.Memory.Bytes()+int64(entryBytes+permissionsBytes(permissions))); err != nil {
		return nil, err
	}
	doc := appendState(nil, t.Enabled(), t.Revision())
	doc = reply.AppendString(append(doc, `,"user":`...), []byte(r.Caller.User))
	doc = reply.AppendString(append(doc, `,"proof":`...), []byte(proofName(string(r.Caller.Proof))))
	doc = appendStrings(append(doc, `,"roles":`...), roles)
	doc = strconv.AppendBool(append(doc, `,"root":`...), g.All())
	doc = appendPermissions(append(doc, `,"permissions":`...), permissions)
	doc = appendStrings(append(doc, `,"capabilities":`...), g.Capabilities())
	if !r.Caller.Expires.IsZero() {
		doc = appendTime(append(doc, `,"expires":`...), r.Caller.Expires)
	}
	answer := found(t, append(doc, '}'))
	answer.Secret = true // the answer depends on the caller
	return answer, nil
}

// proofName returns the name of a proof; None has the name "none".
func proofName(proof string) string {
	if proof == "" {
		return "none"
	}
	return proof
}

// check returns whether a user may do something, and if not, why.
func check(r *Request) (*Answer, error) {
	var doc struct {
		User       *string             `json:"user"` // by default the caller
		Permission *permissionDocument `json:"permission"`
		Capability *string             `json:"capability"`
	}
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	var need rights.Need
	switch {
	case (doc.Permission == nil) == (doc.Capability == nil):
		return nil, badRequest("give either \"permission\" or \"capability\"; it is what the user wants to do")
	case doc.Permission != nil:
		p, err := doc.Permission.permission()
		if err != nil {
			return nil, atField("permission", "%v", err)
		}
		need = rights.Need{Access: p.Access, Space: p.Space, Range: p.Range()}
	default:
		c, err := parseCapability(*doc.Capability)
		if err != nil {
			return nil, atField("capability", "%v", err)
		}
		need = rights.Need{Capability: c}
	}
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	user := r.Caller.User
	if doc.User != nil && *doc.User != user {
		if err := r.mayAdminister(); err != nil {
			return nil, err
		}
		if user = *doc.User; user != "" && t.User(user) == nil {
			return nil, api.Errorf(api.NotFound, "user %.300q does not exist", user)
		}
	}
	why := t.Check(user, need)
	text := reply.AppendString([]byte(`{"user":`), []byte(user))
	text = strconv.AppendBool(append(text, `,"allowed":`...), why == nil)
	if why != nil {
		text = reply.AppendString(append(text, `,"reason":`...), []byte(why.Error()))
	}
	return found(t, append(text, '}')), nil
}

// login exchanges a password for a token that expires soon.
func login(r *Request) (*Answer, error) {
	var doc struct {
		User     string `json:"user"`
		Password string `json:"password"`
	}
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	if doc.User == "" || doc.Password == "" {
		return nil, badRequest("the fields \"user\" and \"password\" are required")
	}
	audit.FromContext(r.Context).About("user " + doc.User)
	token, expires, err := r.Gate.Login(r.Context, doc.User, doc.Password, r.Caller.Address)
	if err != nil {
		return nil, err
	}
	text := reply.AppendString([]byte(`{"user":`), []byte(doc.User))
	text = reply.AppendString(append(text, `,"token":`...), []byte(token))
	text = appendTime(append(text, `,"expires":`...), expires)
	return &Answer{Status: http.StatusOK, Document: append(text, '}', '\n'), Secret: true}, nil
}
