#!/usr/bin/env bash
# up.sh STATE_DIR   creates four hosts on this machine, for the ssh tests:
#
#     laptop ──10.214.1.0/24── login ──10.214.2.0/24── node1, node2
#
# Each is a network namespace with its own address, host name and hosts file, and login and the nodes have an sshd. The
# laptop has no route to the nodes: only login has an address in both networks, and it forwards no packets. The file system
# is shared except for the home directory: the laptop has its own, login and the nodes share another, as on a cluster.
# (It is in /etc/passwd, because ssh reads that and not $HOME.)
#
# Needs root, iproute2 and OpenSSH's client and server; touches nothing under /etc or the real home directory. Settings:
# SSHNET_PREFIX (of names, "pr", at most 5 characters), SSHNET_NET ("10.214"). Afterwards:
#
#     STATE_DIR/on HOST COMMAND...    runs a command on a host (laptop, login, node1, node2)
#     STATE_DIR/sshd HOST start|stop  its sshd, with all its connections
#     STATE_DIR/link HOST up|down     its link to login (for login: its link to the laptop)
#     down.sh STATE_DIR               ends and removes everything
set -euo pipefail
STATE=$(realpath -m "${1:?STATE_DIR}")
HERE=$(cd "$(dirname "$0")" && pwd)
PREFIX=${SSHNET_PREFIX:-pr}
NET=${SSHNET_NET:-10.214}
HOSTS="laptop login node1 node2"
die() { echo "ssh/up.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "only root can make network namespaces"
for program in ip nsenter unshare ssh ssh-keygen; do command -v "$program" >/dev/null || die "there is no $program"; done
[ -x /usr/sbin/sshd ] || die "there is no /usr/sbin/sshd (Debian: openssh-server)"
for h in $HOSTS; do
    ! ip netns list | grep -qw "$PREFIX-$h" || die "the network namespace $PREFIX-$h exists already (down.sh STATE_DIR, or another SSHNET_PREFIX)"
done

mkdir -p "$STATE"/{run,log,etc,cluster,local}
chmod 700 "$STATE"/{cluster,local}
echo "$PREFIX" > "$STATE/prefix"
trap '[ $? = 0 ] || "$HERE/down.sh" "$STATE" >/dev/null 2>&1' EXIT

# ---- the wires: one from the laptop to login, and a bridge inside login for the nodes
for h in $HOSTS; do
    ip netns add "$PREFIX-$h" 2>/dev/null || die "this machine does not allow network namespaces"
    ip -n "$PREFIX-$h" link set lo up
done
ip -n "$PREFIX-login" link add front type veth peer name eth0 netns "$PREFIX-laptop"
ip -n "$PREFIX-login" addr add "$NET.1.2/24" dev front
ip -n "$PREFIX-login" link set front up
ip -n "$PREFIX-laptop" addr add "$NET.1.1/24" dev eth0
ip -n "$PREFIX-laptop" link set eth0 up
ip -n "$PREFIX-login" link add inner type bridge
ip -n "$PREFIX-login" addr add "$NET.2.2/24" dev inner
ip -n "$PREFIX-login" link set inner up
for i in 1 2; do
    ip -n "$PREFIX-login" link add "node$i" type veth peer name eth0 netns "$PREFIX-node$i"
    ip -n "$PREFIX-login" link set "node$i" master inner up
    ip -n "$PREFIX-node$i" addr add "$NET.2.$((10 + i))/24" dev eth0
    ip -n "$PREFIX-node$i" link set eth0 up
done

# ---- names, homes, keys
{ echo "127.0.0.1 localhost"; echo "$NET.1.1 laptop"; echo "$NET.1.2 login"; } > "$STATE/etc/hosts.laptop"
{ echo "127.0.0.1 localhost"; echo "$NET.2.2 login"; echo "$NET.2.11 node1"; echo "$NET.2.12 node2"; } > "$STATE/etc/hosts.cluster"
for kind in local cluster; do
    sed "s|^\(root:[^:]*:[^:]*:[^:]*:[^:]*\):[^:]*:.*|\1:$STATE/$kind:/bin/bash|" /etc/passwd > "$STATE/etc/passwd.$kind"
    mkdir -p -m 700 "$STATE/$kind/.ssh"
    [ -s "$STATE/$kind/.ssh/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C "$kind" -f "$STATE/$kind/.ssh/id_ed25519"
done
cat "$STATE"/{local,cluster}/.ssh/id_ed25519.pub > "$STATE/cluster/.ssh/authorized_keys"
chmod 600 "$STATE/cluster/.ssh/authorized_keys"
for h in login node1 node2; do
    [ -s "$STATE/etc/$h.key" ] || ssh-keygen -q -t ed25519 -N '' -C "$h" -f "$STATE/etc/$h.key"
    echo "$h $(cut -d' ' -f1,2 "$STATE/etc/$h.key.pub")"
done > "$STATE/cluster/.ssh/known_hosts"
cp "$STATE/cluster/.ssh/known_hosts" "$STATE/local/.ssh/known_hosts"
# The laptop reaches the nodes through login, as in a user's configuration.
cat > "$STATE/local/.ssh/config" <<CONF
Host node1 node2
    ProxyJump login
Host *
    ConnectTimeout 5
    ServerAliveInterval 2
    ServerAliveCountMax 3
CONF

# ---- the hosts: one process each holds the host's name and mounts
cat > "$STATE/on" <<ON
#!/bin/sh
# on HOST COMMAND...   run COMMAND on HOST, in its user's home directory, with little of the caller's environment
h=\$1; shift
pid=\$(cat "$STATE/run/\$h.pid") || exit 1
home=$STATE/cluster; [ "\$h" != laptop ] || home=$STATE/local
exec nsenter -t "\$pid" --net --uts --mount -- env -i HOME="\$home" USER=root SHELL=/bin/bash LANG=C.UTF-8 \
    PATH="\${ON_PATH:-/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin}" sh -c 'cd && exec "\$@"' sh "\$@"
ON
cat > "$STATE/sshd" <<SSHD
#!/bin/sh
# sshd HOST start|stop
h=\$1
if [ "\$2" = start ]; then
    exec "$STATE/on" "\$h" /usr/sbin/sshd -f "$STATE/etc/\$h.sshd_config" -E "$STATE/log/\$h.sshd.log"
fi
# The listener and the processes that serve connections, but not those started over a connection.
for pid in \$(ip netns pids "$PREFIX-\$h"); do
    case \$(cat "/proc/\$pid/comm" 2>/dev/null) in sshd*) kill -KILL "\$pid" 2>/dev/null ;; esac
done
rm -f "$STATE/run/\$h.sshd.pid"
SSHD
cat > "$STATE/link" <<LINK
#!/bin/sh
# link HOST up|down
d=\$1; case \$1 in laptop|login) d=front ;; esac
exec ip -n "$PREFIX-login" link set "\$d" "\$2"
LINK
chmod +x "$STATE"/{on,sshd,link}
# sshd requires this directory.
mkdir -p /run/sshd && chmod 755 /run/sshd
cp "$STATE/etc/passwd.local" "$STATE/etc/passwd.laptop"
for h in $HOSTS; do
    kind=cluster; [ "$h" != laptop ] || kind=local
    # A copy of all of /etc: a bind mount on one file is lost when a package that is installed meanwhile replaces that file.
    mkdir "$STATE/etc/all.$h" && cp -a /etc/. "$STATE/etc/all.$h"
    setsid nsenter --net="/run/netns/$PREFIX-$h" unshare --uts --mount --propagation private sh -c '
        cp "$2/etc/hosts.$3" "$2/etc/all.$1/hosts" && cp "$2/etc/passwd.$3" "$2/etc/all.$1/passwd" || exit 1
        hostname "$1" && mount --bind "$2/etc/all.$1" /etc || exit 1
        echo $$ > "$2/run/$1.pid.new" && mv "$2/run/$1.pid.new" "$2/run/$1.pid"
        exec sleep infinity' holder "$h" "$STATE" "$([ $kind = cluster ] && echo cluster || echo laptop)" \
        < /dev/null > "$STATE/log/$h.holder.log" 2>&1 &
done
for h in $HOSTS; do
    for _ in $(seq 200); do [ -e "$STATE/run/$h.pid" ] && break; sleep 0.05; done
    [ -e "$STATE/run/$h.pid" ] || { cat "$STATE/log/$h.holder.log" >&2; die "$h did not come up"; }
done
for h in login node1 node2; do
    cat > "$STATE/etc/$h.sshd_config" <<CONF
Port 22
HostKey $STATE/etc/$h.key
PidFile $STATE/run/$h.sshd.pid
AuthorizedKeysFile .ssh/authorized_keys
# The state may be under /tmp, which is world-writable: do not reject it for that.
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100:30:200
MaxSessions 100
PrintMotd no
Subsystem sftp internal-sftp
CONF
    "$STATE/sshd" "$h" start || { cat "$STATE/log/$h.sshd.log" >&2; die "sshd on $h did not start"; }
done
for h in login node1 node2; do
    ok=0
    for _ in $(seq 100); do
        [ "$("$STATE/on" laptop ssh -o BatchMode=yes "$h" uname -n 2>"$STATE/log/$h.try.log")" = "$h" ] && { ok=1; break; }; sleep 0.1
    done
    [ $ok = 1 ] || { cat "$STATE/log/$h.try.log" "$STATE/log/$h.sshd.log" >&2; die "ssh from laptop to $h does not work"; }
done
# Verify the setup.
! "$STATE/on" laptop timeout 2 bash -c "exec 3<>/dev/tcp/$NET.2.11/22" 2>/dev/null || die "the laptop reaches a node directly"
echo "laptop, login, node1 and node2 are up under $STATE"
