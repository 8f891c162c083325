package transfer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// EtcdRights are the users and roles of an etcd. It does not tell passwords.
type EtcdRights struct {
	Enabled bool
	Users   []EtcdUser
	Roles   []EtcdRole
}

// EtcdUser is a user with the names of its roles.
type EtcdUser struct {
	Name  string
	Roles []string
}

// EtcdRole is a role with its permissions.
type EtcdRole struct {
	Name        string
	Permissions []EtcdPermission
}

// EtcdPermission is what a role permits on [Key, RangeEnd). An empty end stands for Key
// alone, and a zero byte for no bound.
type EtcdPermission struct {
	Type          string // READ, WRITE, or READWRITE
	Key, RangeEnd []byte
}

// EtcdLogin is a user of an etcd who may read its users; empty if it asks for none.
type EtcdLogin struct{ User, Password string }

// ReadEtcdRights reads the users and roles of the etcd whose client URL is base. An answer
// may take as long as the timeout.
func ReadEtcdRights(ctx context.Context, base string, conf *tls.Config, login EtcdLogin, timeout time.Duration) (*EtcdRights, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	e := &etcdReader{base: base, http: &http.Client{Transport: transport}, timeout: timeout}
	out, err := e.rights(ctx, login)
	if err != nil {
		return nil, fmt.Errorf("read the users of %s: %w", base, err)
	}
	return out, nil
}

func (e *etcdReader) rights(ctx context.Context, login EtcdLogin) (*EtcdRights, error) {
	if login.User != "" {
		var made struct {
			Token string `json:"token"`
		}
		if err := e.ask(ctx, "/v3/auth/authenticate", map[string]string{"name": login.User, "password": login.Password}, &made); err != nil {
			return nil, err
		}
		e.token = made.Token
	}
	out := new(EtcdRights)
	var status struct {
		Enabled bool `json:"enabled"`
	}
	if err := e.ask(ctx, "/v3/auth/status", struct{}{}, &status); err != nil {
		return nil, err
	}
	out.Enabled = status.Enabled
	return out, e.accounts(ctx, out)
}

// accounts reads one entry after the other: the lists have only names.
func (e *etcdReader) accounts(ctx context.Context, out *EtcdRights) error {
	var users struct {
		Users []string `json:"users"`
	}
	var roles struct {
		Roles []string `json:"roles"`
	}
	if err := e.ask(ctx, "/v3/auth/user/list", struct{}{}, &users); err != nil {
		return err
	}
	if err := e.ask(ctx, "/v3/auth/role/list", struct{}{}, &roles); err != nil {
		return err
	}
	for _, name := range users.Users {
		u := EtcdUser{Name: name}
		if err := e.ask(ctx, "/v3/auth/user/get", map[string]string{"name": name}, &u); err != nil {
			return err
		}
		out.Users = append(out.Users, u)
	}
	for _, name := range roles.Roles {
		var found struct {
			Perm []struct {
				Type     string `json:"permType"`
				Key      []byte `json:"key"`
				RangeEnd []byte `json:"range_end"`
			} `json:"perm"`
		}
		if err := e.ask(ctx, "/v3/auth/role/get", map[string]string{"role": name}, &found); err != nil {
			return err
		}
		role := EtcdRole{Name: name}
		for _, p := range found.Perm {
			if p.Type == "" { // the gateway leaves out what is 0
				p.Type = "READ"
			}
			role.Permissions = append(role.Permissions, EtcdPermission(p))
		}
		out.Roles = append(out.Roles, role)
	}
	return nil
}

// ask sends a document, and reads the answer.
func (e *etcdReader) ask(ctx context.Context, path string, doc, out any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	text, err := e.post(ctx, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("the answer is not that of etcd's JSON gateway: %w", err)
	}
	return nil
}
