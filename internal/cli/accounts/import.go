package accounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/transfer"
)

// importFlags are the flags of kvd auth import.
type importFlags struct {
	from, user, passwordFile string
	ca, cert, key            string
	dryRun                   bool
}

// imported is the result of kvd auth import.
type imported struct {
	Roles           []string `json:"roles"`
	Users           []string `json:"users"`
	WithoutPassword []string `json:"without_password"`
	Skipped         []string `json:"skipped"`
}

func authImportCommand(sh *cli.Shell) *cobra.Command {
	var m importFlags
	cmd := &cobra.Command{
		Use:   "import --from etcd:URL",
		Short: "Copy users and roles from etcd",
		Long: `Copy the users and roles of a running etcd through its JSON gateway. Roles and users that already
exist in kvd are skipped, so the command can be repeated.

etcd does not reveal passwords, not even their hashes. The command lists the users that it added
without a password: set their passwords with "kvd user passwd", or create tokens for them. It does
not enable rights.`,
		Example: `  kvd auth import --from etcd:http://10.0.0.9:2379 --from-user root`,
		Args:    cli.NoArguments,
	}
	f := cmd.Flags()
	f.StringVar(&m.from, "from", "", "read from this `SOURCE`: etcd:URL")
	f.StringVar(&m.user, "from-user", "", "log in to etcd as `NAME`, and ask for the password")
	f.StringVar(&m.passwordFile, "from-password-file", "", "read the password from the first line of this `FILE`, or of standard input with -")
	f.StringVar(&m.ca, "from-cacert", "", "for etcd: trust the authority in this PEM `FILE`")
	f.StringVar(&m.cert, "from-cert", "", "for etcd: present the certificate in this PEM `FILE`")
	f.StringVar(&m.key, "from-key", "", "for etcd: use the key in this PEM `FILE` for --from-cert")
	f.BoolVar(&m.dryRun, "dry-run", false, "only show what would be added")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		found, err := m.read(ctx, sh)
		if err != nil {
			return err
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		done, err := m.store(ctx, s, found)
		if err != nil {
			return err
		}
		return m.report(s, done)
	})
	return cmd
}

// read reads users and roles from etcd.
func (m *importFlags) read(ctx context.Context, sh *cli.Shell) (*transfer.EtcdRights, error) {
	kind, where, _ := strings.Cut(m.from, ":")
	where = strings.TrimSuffix(where, "/")
	if kind != "etcd" || !transfer.IsEtcdURL(where) {
		return nil, cli.Usagef("--from is %q, but must be etcd:URL (for example, etcd:http://10.0.0.9:2379)", m.from)
	}
	conf, err := cli.TLSConfig(m.ca, m.cert, m.key)
	if err != nil {
		return nil, cli.Usagef("for etcd: --from-%s", strings.TrimPrefix(err.Error(), "--"))
	}
	login := transfer.EtcdLogin{User: m.user}
	switch {
	case m.passwordFile != "":
		login.Password, err = sh.Environment().ReadSecret(m.passwordFile)
	case m.user != "":
		login.Password, err = sh.Environment().AskSecret(fmt.Sprintf("Password of %s in etcd: ", m.user))
	}
	if err != nil {
		return nil, err
	}
	found, err := transfer.ReadEtcdRights(ctx, where, conf, login, sh.Timeout())
	if errors.Is(err, transfer.ErrUnreachable) {
		err = cli.Failf(cli.ExitDown, "%w", err)
	}
	return found, err
}

// store adds the missing entries: roles first, since users refer to them.
func (m *importFlags) store(ctx context.Context, s *cli.Session, found *transfer.EtcdRights) (*imported, error) {
	done := &imported{Roles: []string{}, Users: []string{}, WithoutPassword: []string{}, Skipped: []string{}}
	for _, r := range found.Roles {
		if r.Name == "root" {
			continue // kvd always has it
		}
		role, err := convert(r)
		if err != nil {
			return done, err
		}
		made, err := m.make(func() error { _, err := s.Rights().PutRole(ctx, role); return err }, func() error { _, err := s.Rights().Role(ctx, r.Name); return err })
		if err != nil {
			return done, fmt.Errorf("role %s: %w", cli.Printable(r.Name), err)
		}
		note(made, "role "+r.Name, &done.Skipped, r.Name, &done.Roles)
	}
	for _, u := range found.Users {
		change := client.UserChange{Roles: append([]string{}, u.Roles...), IfAbsent: true}
		made, err := m.make(func() error { _, err := s.Rights().PutUser(ctx, u.Name, change); return err }, func() error { _, err := s.Rights().User(ctx, u.Name); return err })
		if err != nil {
			return done, fmt.Errorf("user %s: %w", cli.Printable(u.Name), err)
		}
		if note(made, "user "+u.Name, &done.Skipped, u.Name, &done.Users); made {
			done.WithoutPassword = append(done.WithoutPassword, u.Name)
		}
	}
	return done, nil
}

func note(made bool, skipped string, toSkipped *[]string, name string, to *[]string) {
	if made {
		*to = append(*to, name)
		return
	}
	*toSkipped = append(*toSkipped, skipped)
}

// make adds an entry and reports whether it was missing; with --dry-run, it only checks.
func (m *importFlags) make(put, get func() error) (made bool, err error) {
	if m.dryRun {
		err = get()
		if errors.Is(err, client.ErrNotFound) {
			return true, nil
		}
		return false, err
	}
	err = put()
	if errors.Is(err, client.ErrPreconditionFailed) {
		return false, nil
	}
	return err == nil, err
}

// convert returns the kvd role for an etcd role.
func convert(r transfer.EtcdRole) (client.Role, error) {
	role := client.Role{Name: r.Name, IfAbsent: true}
	for _, p := range r.Permissions {
		access := client.Access(strings.ToLower(p.Type))
		if !slices.Contains(accesses, string(access)) {
			return role, cli.Failf(cli.ExitFailed, "role %s of etcd has a permission of an unknown type %q", cli.Printable(r.Name), p.Type)
		}
		role.Permissions = append(role.Permissions, client.Permission{Access: access, Names: names(p.Key, p.RangeEnd)})
	}
	return role, nil
}

// names returns the range of an etcd permission.
func names(key, end []byte) client.Range {
	start := string(key)
	if start == "\x00" { // etcd has no empty keys either
		start = ""
	}
	switch {
	case len(end) == 0:
		return client.Key(string(key))
	case bytes.Equal(end, []byte{0}):
		return client.Between(start, "")
	case transfer.After(start) == string(end):
		return client.Prefix(start)
	}
	return client.Between(start, string(end))
}

func (m *importFlags) report(s *cli.Session, done *imported) error {
	if s.FormatOr(cli.Table) == cli.JSON {
		return s.PrintJSON(done)
	}
	verb := "made"
	if m.dryRun {
		verb = "would make"
	}
	if s.FormatOr(cli.Table) == cli.Value {
		return s.Println(strings.Join(done.Users, "\n"))
	}
	if len(done.Skipped) > 0 {
		s.Note("left alone, because they exist: %s", words(done.Skipped))
	}
	if err := s.Println(fmt.Sprintf("%s %d roles and %d users", verb, len(done.Roles), len(done.Users))); err != nil {
		return err
	}
	if len(done.WithoutPassword) > 0 {
		return s.Println("these users have no password, because etcd does not tell it; set one with \"kvd user passwd NAME\":\n" + strings.Join(done.WithoutPassword, "\n"))
	}
	return nil
}
