package accounts

import (
	"context"
	"slices"
	"strconv"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/rights"
)

// userDocument is the body of PUT /v1/users/{name}. A response of GET is one, too.
type userDocument struct {
	Name         *string   `json:"name"`
	Roles        *[]string `json:"roles"`
	Password     *string   `json:"password"`
	PasswordHash *string   `json:"password_hash"`
	HasPassword  *bool     `json:"has_password"`
}

func appendUser(doc []byte, name string, roles []string, hasPassword bool) []byte {
	doc = reply.AppendString(append(doc, `{"name":`...), []byte(name))
	doc = appendStrings(append(doc, `,"roles":`...), roles)
	doc = append(doc, `,"has_password":`...)
	return append(strconv.AppendBool(doc, hasPassword), '}')
}

func appendStrings[T ~string](doc []byte, words []T) []byte {
	doc = append(doc, '[')
	for i, w := range words {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = reply.AppendString(doc, []byte(w))
	}
	return append(doc, ']')
}

func listUsers(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	if err := r.mayAdminister(); err != nil {
		return nil, err
	}
	size := func(name string) int {
		n := entryBytes + stretched*len(name)
		for _, role := range t.User(name).Roles {
			n += stretched * (len(role) + 1)
		}
		return n
	}
	return r.page(t, "users", t.Users(), size, func(doc []byte, name string) []byte {
		return appendUser(doc, name, t.User(name).Roles, len(t.User(name).Hash) > 0)
	})
}

func getUser(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	if r.Name != r.Caller.User {
		if err := r.mayAdminister(); err != nil {
			return nil, err
		}
	}
	u := t.User(r.Name)
	if u == nil {
		return nil, api.Errorf(api.NotFound, "user %q does not exist", r.Name)
	}
	return found(t, appendUser(nil, u.Name, u.Roles, len(u.Hash) > 0)), nil
}

// putUser adds or changes a user. Without roles, the document changes only the password;
// without a password, the user keeps the current one.
func putUser(r *Request) (*Answer, error) {
	var doc userDocument
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	if err := doc.check(r.Name); err != nil {
		return nil, err
	}
	c := new(rights.Change)
	if doc.Roles != nil {
		c.PutUser = &rights.User{Name: r.Name, Roles: *doc.Roles}
	} else {
		c.SetPassword = &rights.Password{User: r.Name}
	}
	// Before the password is hashed: that costs more than anything else here.
	if err := r.judge(c); err != nil {
		return nil, err
	}
	hash, given, err := doc.hash(r.Context, r.Gate.Hash)
	switch {
	case err != nil:
		return nil, err
	case c.SetPassword != nil:
		c.SetPassword.Hash = hash
	default:
		c.PutUser.Hash, c.KeepPassword = hash, !given
	}
	res, err := r.change(c)
	if err != nil {
		return nil, err
	}
	answer := &Answer{Status: status(&res), Revision: res.KV.ModRevision, Location: location("/v1/users/", r.Name)}
	roles, has := []string{}, len(hash) > 0
	if u := r.Gate.Tables().User(r.Name); u != nil { // it may have been deleted since
		roles, has = u.Roles, len(u.Hash) > 0
	}
	answer.Document = append(appendUser(nil, r.Name, roles, has), '\n')
	return answer, nil
}

// check refuses contradictory documents.
func (d *userDocument) check(name string) error {
	given := 0
	for _, set := range []bool{d.Password != nil, d.PasswordHash != nil, d.HasPassword != nil && !*d.HasPassword} {
		if set {
			given++
		}
	}
	switch {
	case d.Name != nil && *d.Name != name:
		return atField("name", "it is %.300q, but the path says %.300q; a user cannot be renamed", *d.Name, name)
	case given > 1:
		return badRequest("give only one of \"password\", \"password_hash\", and \"has_password\": false, which takes the password away")
	case given == 0 && d.Roles == nil:
		return badRequest("the fields \"roles\" and \"password\" are missing; roles may be an empty list")
	case d.Password != nil && *d.Password == "":
		return atField("password", "it is empty; for a user without a password, use \"has_password\": false")
	}
	if d.PasswordHash != nil {
		return checkHash(*d.PasswordHash)
	}
	return nil
}

func checkHash(hash string) error {
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || len(hash) != 60 {
		return atField("password_hash", "it is not a bcrypt hash, which begins with $2a$, $2b$, or $2y$ and has 60 characters")
	}
	if cost > rights.MaxHashCost {
		return atField("password_hash", "its cost is %d, but the limit is %d: each login would take seconds", cost, rights.MaxHashCost)
	}
	return nil
}

// hash returns the hash of the password, and whether there is something to change.
func (d *userDocument) hash(ctx context.Context, hash func(context.Context, string) ([]byte, error)) ([]byte, bool, error) {
	switch {
	case d.Password != nil:
		h, err := hash(ctx, *d.Password)
		return h, true, err
	case d.PasswordHash != nil:
		return []byte(*d.PasswordHash), true, nil
	}
	return nil, d.HasPassword != nil && !*d.HasPassword, nil
}

func deleteUser(r *Request) (*Answer, error) {
	res, err := r.change(&rights.Change{DeleteUser: r.Name})
	return deleted(&res, err)
}

// has reports whether the caller has a role.
func (r *Request) has(t *rights.Tables, role string) bool {
	if u := t.User(r.Caller.User); u != nil {
		return slices.Contains(u.Roles, role)
	}
	return r.Caller.User == "" && role == rights.Anonymous
}
