// Empty: c10d's Gloo header includes this file but uses nothing from it.
#pragma once
