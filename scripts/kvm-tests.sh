# SPDX-License-Identifier: GPL-2.0
# Sourced in the VM by what scripts/test-kvm has it run: job INDEX LIMIT [VARIABLE=VALUE]
# PROGRAM... runs a test, says how it ended in lines that start with @, and cuts its output.

now() { cut -d' ' -f1 /proc/uptime; }
job() {
	index=$1 limit=$2
	shift 2
	echo "kvm-test $index: $*" > /dev/kmsg
	echo "@begin $index"
	start=$(now)
	setsid timeout -s KILL $limit env "$@" > /tmp/output 2>&1 < /dev/null &
	leader=$!
	wait $leader
	status=$?
	kill -KILL -$leader 2> /dev/null
	end=$(now)
	head -n 5 /tmp/output
	tail -n +6 /tmp/output | tail -n 40
	echo
	echo "@end $index $status $start $end"
}
cd /kvm
echo 100 > /proc/sys/vm/nr_hugepages
# kvmclock follows the TSC only once it is the kernel's clock.
clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
while ! grep -qx tsc $clock && [ "$(cut -d. -f1 /proc/uptime)" -lt 30 ]; do sleep 1; done
