package accounts

import (
	"fmt"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/rights"
)

// roleDocument is a role, in both directions.
type roleDocument struct {
	Name         *string              `json:"name"`
	Permissions  []permissionDocument `json:"permissions"`
	Capabilities []string             `json:"capabilities"`
}

// role returns the role in the document. Errors name the path of the mistake.
func (d *roleDocument) role(name string) (*rights.Role, error) {
	if d.Name != nil && *d.Name != name {
		return nil, atField("name", "it is %.300q, but the path says %.300q; a role cannot be renamed", *d.Name, name)
	}
	if name == rights.Root {
		return nil, badRequest("the role root exists without being made, and may do everything; use another name")
	}
	role := &rights.Role{Name: name}
	for i := range d.Permissions {
		p, err := d.Permissions[i].permission()
		if err != nil {
			return nil, atField(fmt.Sprintf("permissions[%d]", i), "%v", err)
		}
		role.Permissions = append(role.Permissions, p)
	}
	for i, c := range d.Capabilities {
		capability, err := parseCapability(c)
		if err != nil {
			return nil, atField(fmt.Sprintf("capabilities[%d]", i), "%v", err)
		}
		role.Capabilities = append(role.Capabilities, capability)
	}
	return role, nil
}

func parseCapability(word string) (rights.Capability, error) {
	for _, c := range rights.Capabilities {
		if word == string(c) {
			return c, nil
		}
	}
	return "", fmt.Errorf("%.40q is not a capability; there are %q", word, rights.Capabilities)
}

func appendRole(doc []byte, role *rights.Role) []byte {
	doc = reply.AppendString(append(doc, `{"name":`...), []byte(role.Name))
	doc = appendPermissions(append(doc, `,"permissions":`...), role.Permissions)
	return append(appendStrings(append(doc, `,"capabilities":`...), role.Capabilities), '}')
}

func roleBytes(role *rights.Role) int {
	return entryBytes + stretched*len(role.Name) + permissionsBytes(role.Permissions)
}

func listRoles(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	if err := r.mayAdminister(); err != nil {
		return nil, err
	}
	size := func(name string) int { return roleBytes(t.Role(name)) }
	return r.page(t, "roles", t.Roles(), size, func(doc []byte, name string) []byte { return appendRole(doc, t.Role(name)) })
}

func getRole(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	if !r.has(t, r.Name) {
		if err := r.mayAdminister(); err != nil {
			return nil, err
		}
	}
	role := t.Role(r.Name)
	if role == nil {
		return nil, api.Errorf(api.NotFound, "role %q does not exist", r.Name)
	}
	if err := r.Memory.Wait(r.Context, r.Memory.Bytes()+int64(roleBytes(role))); err != nil {
		return nil, err
	}
	return found(t, appendRole(nil, role)), nil
}

// putRole adds or replaces a role.
func putRole(r *Request) (*Answer, error) {
	var doc roleDocument
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	role, err := doc.role(r.Name)
	if err != nil {
		return nil, err
	}
	if err := r.Memory.Wait(r.Context, r.Memory.Bytes()+int64(roleBytes(role))); err != nil {
		return nil, err
	}
	res, err := r.change(&rights.Change{PutRole: role})
	if err != nil {
		return nil, err
	}
	return &Answer{Status: status(&res), Document: append(appendRole(nil, role), '\n'), Revision: res.KV.ModRevision, Location: location("/v1/roles/", r.Name)}, nil
}

func deleteRole(r *Request) (*Answer, error) {
	res, err := r.change(&rights.Change{DeleteRole: r.Name})
	return deleted(&res, err)
}
